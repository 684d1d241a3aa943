#include "vmm/device_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace crossbar {
namespace {

TEST(DeviceSpec, TakesEachWayToNameADevice) {
  for (const char* text : {"0000:01:00.0", "01:00.0", "host=0000:01:00.0", "host=1:0.0",
                           "path=/sys/bus/pci/devices/0000:01:00.0",
                           "path=/sys/bus/pci/devices/0000:01:00.0/"}) {
    const auto spec = ParseDeviceSpec(text);
    ASSERT_TRUE(spec) << text << ": " << spec.error().message();
    EXPECT_EQ(spec->host, "0000:01:00.0");
    EXPECT_EQ(spec->id, "0000:01:00.0");
    EXPECT_TRUE(spec->p2p && spec->rom && !spec->slot);
  }
}

TEST(DeviceSpec, TakesItsOptions) {
  const auto spec = ParseDeviceSpec("0001:02:1f.7,id=nic,port=rp,slot=1f,p2p=off,rom=a/b=c.rom");
  ASSERT_TRUE(spec);
  EXPECT_EQ(spec->host, "0001:02:1f.7");
  EXPECT_EQ(spec->id, "nic");
  EXPECT_EQ(spec->port, "rp");
  EXPECT_EQ(spec->slot, 0x1f);
  EXPECT_FALSE(spec->p2p);
  EXPECT_EQ(spec->rom_file, "a/b=c.rom");
  EXPECT_FALSE(ParseDeviceSpec("01:00.0,rom=off")->rom);
}

TEST(DeviceSpec, TakesServersAndHandsModelsTheirOwnOptions) {
  const auto socket = ParseDeviceSpec("socket=/run/a.sock,p2p=off");
  ASSERT_TRUE(socket);
  EXPECT_EQ(socket->socket, "/run/a.sock");
  EXPECT_EQ(socket->id, "/run/a.sock");
  const auto model = ParseDeviceSpec("model=memory,size=32M,id=mem,slot=5");
  ASSERT_TRUE(model) << model.error().message();
  EXPECT_THAT(model->model_arguments, ::testing::ElementsAre("memory", "--size", "32M"));
  EXPECT_EQ(model->id, "mem");
  const auto dma = ParseDeviceSpec("model=dma,msix=on,channels=2");
  ASSERT_TRUE(dma) << dma.error().message();
  EXPECT_THAT(dma->model_arguments, ::testing::ElementsAre("dma", "--msix", "--channels", "2"));
  const auto faulty = ParseDeviceSpec("01:00.0,fault=wanted-back@2.5");
  ASSERT_TRUE(faulty) << faulty.error().message();
  EXPECT_EQ(faulty->fault->cause, ZapCause::kWantedBack);
  EXPECT_EQ(faulty->fault->after.count(), 2500);
}

TEST(DeviceSpec, SaysWhatIsWrong) {
  const auto error = [](const char* text) {
    const auto spec = ParseDeviceSpec(text);
    return spec ? "none" : spec.error().message();
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(error(""), HasSubstr("names no device"));
  EXPECT_THAT(error("id=nic"), HasSubstr("names no device"));
  EXPECT_THAT(error("eth0"), HasSubstr("'eth0' is not a PCI address"));
  EXPECT_THAT(error("01:20.0"), HasSubstr("00 to 1f"));
  EXPECT_THAT(error("01:00.0x"), HasSubstr("not a PCI address"));
  EXPECT_THAT(error("01:00.0,slot=0"), HasSubstr("slot=0"));
  EXPECT_THAT(error("01:00.0,slot=20"), HasSubstr("slot=20"));
  EXPECT_THAT(error("01:00.0,p2p=yes"), HasSubstr("p2p=yes is not on or off"));
  EXPECT_THAT(error("01:00.0,p2p"), HasSubstr("'p2p' is not NAME=VALUE"));
  EXPECT_THAT(error("01:00.0,rom="), HasSubstr("rom= has no value"));
  EXPECT_THAT(error("01:00.0,port="), HasSubstr("port= has no value"));
  EXPECT_THAT(error("01:00.0,speed=9"), HasSubstr("there is no speed="));
  EXPECT_THAT(error("01:00.0,fault=fire@1"), HasSubstr("there are device-error, device-gone"));
  EXPECT_THAT(error("01:00.0,fault=closing@1"), HasSubstr("there is no such fault"));
  for (const char* when : {"", "@", "@x", "@1s", "@0", "@-1", "@nan", "@1e9", "@90000"})
    EXPECT_THAT(error(fmt::format("01:00.0,fault=device-gone{}", when).c_str()), HasSubstr("does not say when")) << when;
  EXPECT_THAT(error("01:00.0,id=a,id=b"), HasSubstr("id= is given twice"));
  EXPECT_THAT(error("01:00.0,path=/sys/bus/pci/devices/0000:01:00.0"), HasSubstr("more than one device"));
  EXPECT_THAT(error("model=gpu"), HasSubstr("no device 'gpu'"));
  EXPECT_THAT(error("model=memory,size=x"), HasSubstr("--size"));
  EXPECT_THAT(error("model=memory,color=red"), HasSubstr("color"));
  EXPECT_THAT(error("socket=/a,size=16M"), HasSubstr("there is no size="));
}

TEST(DeviceSpec, SeveralAreToldApart) {
  const auto error = [](std::initializer_list<const char*> texts) -> std::string {
    std::vector<DeviceSpec> specs;
    for (const char* text : texts) specs.push_back(*ParseDeviceSpec(text));
    const Result<> distinct = CheckDistinct(specs);
    return distinct ? "none" : distinct.error().message();
  };
  using ::testing::HasSubstr;
  EXPECT_EQ(error({"01:00.0", "01:00.1", "model=dma,id=a", "model=dma,id=b,slot=3"}), "none");
  EXPECT_THAT(error({"01:00.0", "path=/sys/bus/pci/devices/0000:01:00.0,id=b"}),
              HasSubstr("0000:01:00.0 is given twice"));
  EXPECT_THAT(error({"socket=/a,id=a", "socket=/a,id=b"}), HasSubstr("/a is given twice"));
  EXPECT_THAT(error({"model=dma", "model=dma"}), HasSubstr("the id dma"));
  EXPECT_THAT(error({"01:00.0,slot=3", "01:00.1,slot=3"}), HasSubstr("the slot 3"));
  EXPECT_EQ(error({"01:00.0,port=a,slot=3", "01:00.1,port=a,slot=3", "01:00.2,port=a"}), "none");
  EXPECT_THAT(error({"01:00.0,port=a,slot=3", "01:00.1,slot=3"}), HasSubstr("the slot 3"));
  EXPECT_THAT(error({"01:00.0,slot=3", "01:00.1,port=a,slot=3"}), HasSubstr("the slot 3"));
  EXPECT_THAT(error({"01:00.0,port=a,slot=3", "01:00.1,port=b,slot=3"}), HasSubstr("the slot 3"));
  EXPECT_THAT(error({"01:00.0,port=a,slot=3", "01:00.1,port=a,slot=4"}), HasSubstr("port=a is given two slots"));
}

}  // namespace
}  // namespace crossbar
